"""What a user would do on one device and one link: local, JPEG, a fixed split, the controller."""
