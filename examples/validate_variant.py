"""Before and after: a random change of one layer's weights is assessed, then validated; each report becomes a page.

The risk report predicts from gradients and a dry run that nobody else sees; the validation asks base and variant the same
questions. A few minutes on a CPU.

    python examples/validate_variant.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from serving import arguments, connected

from probewire.analysis.reports.risk import assess
from probewire.analysis.reports.validation import validate_variant
from probewire.clients import Delta, Variant

LAYER, STRENGTH = 10, 0.02
ITEMS = 16
"""Of each task: enough to see a wreck, too few to certify two points; the report says how many would."""
OUTPUT = Path(__file__).parent / "output" / "validate_variant"


def main() -> None:
    """Assess, validate, write the pages."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        info, rng = client.describe(args.model), np.random.default_rng(0)
        a, b = rng.normal(size=(info.d_mlp, 1)) * STRENGTH, rng.normal(size=(1, info.d_model))
        variant = Variant({f"w_down.{LAYER}": Delta(a, b)}).named("random").bound(info)
        risk = assess(client, variant, model=args.model)
        print(risk)
        risk.save(OUTPUT)
        report = validate_variant(client, variant, suites=("tasks", "safety"), n=ITEMS, model=args.model)
        print(report)
        for check in report.checks:
            print(" ", check)
        report.save(OUTPUT)
    print(f"pages: {OUTPUT}/risk.html and validation.html")


if __name__ == "__main__":
    main()
