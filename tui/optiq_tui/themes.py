"""The dashboard's own themes, dark and light. Textual's can be chosen too; with NO_COLOR set, none has colours."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="optiq",
    primary="#4fc1ff",
    secondary="#8c9bb0",
    accent="#c3a6ff",
    success="#7ed491",
    warning="#ffb054",
    error="#ff6b6b",
    foreground="#d8dee9",
    background="#10141b",
    surface="#151a23",
    panel="#1e2530",
    dark=True,
    variables={
        "footer-key-foreground": "#4fc1ff",
        "footer-background": "#151a23",
        "block-cursor-text-style": "none",
        "border": "#3a4657",
    },
)

LIGHT = Theme(
    name="optiq-light",
    primary="#005f9e",
    secondary="#59677a",
    accent="#6b3fc4",
    success="#1f7a34",
    warning="#9a5700",
    error="#b3261e",
    foreground="#1c2430",
    background="#ffffff",
    surface="#f5f7fa",
    panel="#e3e8ef",
    dark=False,
    variables={
        "footer-key-foreground": "#005f9e",
        "footer-background": "#f5f7fa",
        "block-cursor-text-style": "none",
        "border": "#aab6c5",
    },
)
