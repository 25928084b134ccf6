"""What the story model's recipe is made of: text, tokens, network, training, figures."""
