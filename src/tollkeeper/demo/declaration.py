"""What the demonstration sets up, as the declarative file that `tollkeeper apply` takes."""

from __future__ import annotations

from typing import Final

CRAWLER_PER_MINUTE: Final = 30
"""Requests a minute of the starter plan: the crawler sends twice as many at once."""

DECLARATION: Final = f"""
# A model gateway with two customers: one on a plan with a subscription, one on prepaid credit.

[[plans]]
slug = "scale"
name = "Scale"
price_nanos = 99_000_000_000
layers = ["standard", "research"]

  [[plans.limits]]
  name = "requests"
  amount = 2000
  window = "1m"
  algorithm = "sliding"

  [[plans.limits]]
  name = "tokens"
  amount = 5_000_000
  window = "1m"
  unit = "tokens"
  algorithm = "sliding"

  [[plans.limits]]
  name = "scans-at-once"
  amount = 2
  algorithm = "concurrency"
  bucket = "scans"

  [[plans.budgets]]
  name = "monthly"
  amount = 500_000_000_000
  period = "month"

[[plans]]
slug = "starter"
name = "Starter"
layers = ["standard"]

  [[plans.limits]]
  name = "requests"
  amount = {CRAWLER_PER_MINUTE}
  window = "1m"
  algorithm = "sliding"

[[accounts]]
id = "northwind"
name = "Northwind Analytics"

[[accounts]]
id = "papertrail"
name = "Papertrail Labs"
plan = "starter"

[[subscriptions]]
id = "northwind-scale"
account = "northwind"
plan = "scale"
started_at = 2026-01-15T09:00:00Z

[[projects]]
id = "assistant"
account = "northwind"
name = "Customer assistant"

[[projects]]
id = "research"
account = "northwind"
name = "Research"

[[projects]]
id = "notebook"
account = "papertrail"
name = "Notebook"

[[keys]]
id = "assistant-live"
account = "northwind"
project = "assistant"
subscription = "northwind-scale"

[[keys]]
id = "nightly-batch"
account = "northwind"
project = "assistant"
subscription = "northwind-scale"

[[keys]]
id = "research-lab"
account = "northwind"
project = "research"
subscription = "northwind-scale"

[[keys]]
id = "leaked"
account = "northwind"
subscription = "northwind-scale"

[[keys]]
id = "northwind-admin"
account = "northwind"
role = "management"

[[keys]]
id = "crawler"
account = "papertrail"

[[keys]]
id = "notebook-prepaid"
account = "papertrail"
project = "notebook"
type = "credit"

# Five US cents a month: spent within this demonstration.
[[budgets]]
id = "research-monthly"
account = "northwind"
project = "research"
amount = 50_000_000
period = "month"

[[grants]]
id = "welcome"
account = "papertrail"
amount_nanos = 10_000_000
priority = 10
note = "Drawn on first"

[[grants]]
id = "top-up-1"
account = "papertrail"
amount_nanos = 30_000_000
source = "top_up"

[[routes]]
id = "chat"
method = "POST"
path = "/v1/chat/completions"
event_kind = "completion"
layer = "standard"

[[routes]]
id = "models"
method = "GET"
path = "/v1/models"
free = true

[[routes]]
id = "scans"
method = "POST"
path = "/v1/scans"
event_kind = "scan"
credits = 5
bucket = "scans"
layer = "research"
"""
