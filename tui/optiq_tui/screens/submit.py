"""A form for a training job that shows what the job would take while it is written."""

from __future__ import annotations

from typing import ClassVar, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Checkbox, Input, Label, Select, Static

from optiq_client import RankScaling, TrainingConfig
from optiq_tui.job_fields import FIELDS, FieldError, to_config
from optiq_tui.job_text import describe_plan
from optiq_tui.messages import PlanWanted, SubmitWanted
from optiq_tui.view import Part, PlanStage, View
from optiq_tui.widgets.tones import Tones

SCHEMES = [s for s in RankScaling if s not in {RankScaling.UNSPECIFIED, RankScaling.PATTERN}]


class Submit(ModalScreen[None]):
    """Fields on the left, the plan on the right. Closes when the job is queued, or with escape."""

    HELP = (
        "A training job. Empty fields take the daemon's defaults. The plan on the right follows what you type: what "
        "the run would take of both ceilings, and what would make it fit. `ctrl+g` queues the job."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+g", "queue", "Queue it", id="submit.queue", tooltip="Queue the job"),
        Binding("escape", "close", "Close", id="submit.close", tooltip="Close the form; nothing is queued"),
    ]

    def compose(self) -> ComposeResult:
        """The form."""
        with Horizontal(id="submit"):
            with VerticalScroll(id="submit-fields", can_focus=False):
                yield Label("New training job", id="submit-title")
                for field in FIELDS:
                    with Horizontal(classes="field"):
                        yield Label(field.label)
                        yield Input(placeholder=field.hint, id=f"field-{field.name}", compact=True)
                with Horizontal(classes="field"):
                    yield Label("ranks")
                    yield Select(
                        [(scheme.lower().replace("_", " "), scheme) for scheme in SCHEMES],
                        value=RankScaling.BY_BITS,
                        allow_blank=False,
                        id="field-scaling",
                        compact=True,
                    )
                with Horizontal(classes="field"):
                    yield Label("")
                    yield Checkbox("recompute activations", id="field-checkpoint", compact=True)
                yield Label("[b]ctrl+g[/b] queues it, [b]esc[/b] closes", id="submit-keys")
                yield Button("Queue it", id="submit-queue", variant="primary", compact=True)
            with Vertical(id="submit-plan"):
                yield Label("Plan", id="submit-plan-title")
                yield VerticalScroll(Static("", id="submit-plan-text"), can_focus=False)

    def on_mount(self) -> None:
        """Begin with the name."""
        self.query_one("#field-adapter", Input).focus()
        self._say("Give the adapter a name and a folder with train.jsonl; the plan follows.")

    def show_view(self, view: View, parts: frozenset[Part]) -> None:
        """Draw the plan."""
        if Part.PLAN not in parts or self._problem():
            return
        state, tones = view.plan, Tones.of(self)
        title = self.query_one("#submit-plan-title", Label)
        title.update("Plan …" if state.stage is PlanStage.PLANNING else "Plan")
        if state.stage is PlanStage.FAILED:
            self._say(tones.text(state.error, "error"))
        elif state.plan is not None:
            self.query_one("#submit-plan-text").set_class(state.stage is PlanStage.PLANNING, "-old")
            self._say(describe_plan(state.plan, tones))
        elif state.stage is PlanStage.PLANNING:
            self._say(Text("The data is read and the step's graph is walked …", style="dim"))

    @on(Input.Changed)
    @on(Select.Changed)
    @on(Checkbox.Changed)
    def _changed(self) -> None:
        problem = self._problem()
        for field in FIELDS:
            wrong = problem is not None and problem.field == field.name
            self.query_one(f"#field-{field.name}", Input).set_class(wrong, "-wrong")
        if problem is not None:
            self.post_message(PlanWanted(None))
            self._say(Tones.of(self).text(f"{problem.field}: {problem}", "warning"))
        else:
            self.post_message(PlanWanted(self._config()))

    @on(Input.Submitted)
    def _next(self) -> None:
        self.focus_next()

    @on(Button.Pressed, "#submit-queue")
    def action_queue(self) -> None:
        """Queue the job, if its fields say enough."""
        problem = self._problem()
        if problem is None and not self._text("adapter"):
            problem = FieldError("adapter", "the result needs a name to be served under")
        if problem is not None:
            self._say(Tones.of(self).text(f"{problem.field}: {problem}", "warning"))
            self.query_one(f"#field-{problem.field}", Input).focus()
            return
        self.app.post_message(SubmitWanted(self._text("adapter"), self._config()))
        self.action_close()

    def action_close(self) -> None:
        """Close; the plan is not wanted any more."""
        self.app.post_message(PlanWanted(None))
        self.dismiss(None)

    def _problem(self) -> FieldError | None:
        try:
            self._config()
        except FieldError as error:
            return error
        return None

    def _config(self) -> TrainingConfig:
        scaling = self.query_one("#field-scaling", Select).value
        return to_config(
            {field.name: self._text(field.name) for field in FIELDS},
            scaling=cast(RankScaling, scaling),
            checkpoint=self.query_one("#field-checkpoint", Checkbox).value,
        )

    def _text(self, name: str) -> str:
        return self.query_one(f"#field-{name}", Input).value.strip()

    def _say(self, text: Text | str) -> None:
        self.query_one("#submit-plan-text", Static).update(text)
