"""The device loop: stay connected, send what the outbox holds, try updates, confirm them or take them back."""

from kasmina_edge.agent.loop import Agent
from kasmina_edge.agent.offers import Decision, decide_offer

__all__ = ["Agent", "Decision", "decide_offer"]
