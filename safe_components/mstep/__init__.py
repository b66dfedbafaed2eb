"""The M-step: weighted maximum likelihood inside a trust region."""
