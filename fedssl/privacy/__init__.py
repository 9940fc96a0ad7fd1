"""Privacy: what an objective promises, mechanisms, accountants and audits."""
