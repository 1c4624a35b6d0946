"""Monitoring: following logs of others or one's own, and raising the alarm where one contradicts itself."""
