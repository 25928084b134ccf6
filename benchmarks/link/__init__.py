"""The controller on replayed links, against a clairvoyant and simpler rules."""
