"""The privacy statement and the report for people."""
