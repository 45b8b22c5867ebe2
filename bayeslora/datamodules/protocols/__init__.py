"""Protocols: how questions become prompts, splits and label tokens."""

from bayeslora.datamodules.protocols.base import Prompt, Protocol, get_protocol

__all__ = ["Prompt", "Protocol", "get_protocol"]
