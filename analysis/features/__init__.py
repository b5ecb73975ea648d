"""What units respond to, across kinds of text."""

from .causal import causal_check
from .corpora import DOMAINS, domain_texts
from .entanglement import Entanglement, Profile, entangled_units, entanglement, profile, similar_across
from .entanglement_page import entanglement_page
from .rows import DomainRows, collect_rows

__all__ = [
    "DOMAINS",
    "DomainRows",
    "Entanglement",
    "Profile",
    "causal_check",
    "collect_rows",
    "domain_texts",
    "entangled_units",
    "entanglement",
    "entanglement_page",
    "profile",
    "similar_across",
]
