"""The tasks of language models that write."""

from typing import TypeAlias

from fedpeft.tasks.causal_lm import CausalLM
from fedpeft.tasks.preference import Preference

LanguageTask: TypeAlias = CausalLM | Preference
"""Their models go on from a text: they are sampled, asked and exported alike."""
