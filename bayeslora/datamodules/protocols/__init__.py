"""Protocols: how questions become prompts, splits and label tokens."""

from bayeslora.datamodules.protocols.base import Prompt, Protocol
from bayeslora.datamodules.protocols.find import get_protocol
from bayeslora.datamodules.protocols.own import OwnProtocol

__all__ = ["OwnProtocol", "Prompt", "Protocol", "get_protocol"]
