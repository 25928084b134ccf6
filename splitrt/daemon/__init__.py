"""splitrt as a service: models that stay loaded, cameras that are run for ever, a local API."""
