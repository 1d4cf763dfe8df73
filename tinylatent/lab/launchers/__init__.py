"""Launchers: how runs get done, on this machine or elsewhere, behind one protocol."""

from tinylatent.lab.launchers.launcher import LAUNCHERS, Job, Launcher, Submitted, launcher_named

__all__ = ["LAUNCHERS", "Job", "Launcher", "Submitted", "launcher_named"]
