"""Callbacks for training frameworks, imported only on request."""
