"""What people read after a run: report.json, report.html, junit.xml, summary.md and the table in the terminal."""
