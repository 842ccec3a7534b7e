"""Describe this machine and installation: what models will run on, and what slows them down."""

from duonlp.doctor.diagnosis import Diagnosis, diagnose
from duonlp.doctor.engines import EngineReport, examine
from duonlp.doctor.extras import Extra, extras

__all__ = ["Diagnosis", "EngineReport", "Extra", "diagnose", "examine", "extras"]
