from __future__ import annotations

from hypothesis import settings

# examples are few and cheap; their first one pays for imports, so that a deadline would only measure the machine
settings.register_profile("stcontrast", deadline=None, max_examples=40)
settings.load_profile("stcontrast")
