"""What an ensemble knew, doubted and forgot while it trained, from files alone."""
