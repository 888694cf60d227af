"""The lab: experiments on what looking ahead is worth, as data, runs and a report."""
