"""Lab: experiments, records, studies, tables and figures."""
