"""Who may call: users with their keys, roles and limits, the origins and proxies that are believed, and the audit."""
