"""Gaussian policies with full or diagonal covariance."""
