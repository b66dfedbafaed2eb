"""The variational E-step: particles, projector, dual solvers."""
