"""What tokens cost: price books, reconciliation with invoices, budgets and forecasts of spend."""
