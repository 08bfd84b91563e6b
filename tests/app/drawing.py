"""What tests of figures share."""

from minirl.app.rundir import RunDir


def made(path, command, metrics, **config):
    """A run with these metrics, from step 1 on."""
    run = RunDir.create(path, {"command": command, "settings": {"seed": 0}, **config})
    for step, values in enumerate(metrics, start=1):
        run.append_metrics(step, values)
    return run


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]
