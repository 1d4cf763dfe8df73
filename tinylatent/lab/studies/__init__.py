"""Studies: one table or figure each, registered under the entry-point group "tinylatent.lab.studies"."""
