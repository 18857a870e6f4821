/** Names of dimensions and values as people read them; reasons of refusals with what to do. */

const DIMENSION: Record<string, string> = {
  account: "Account",
  project: "Project",
  key: "Key",
  model: "Model",
  endpoint: "Endpoint",
  status: "Status",
  kind: "Kind",
  error_type: "Error",
  denied_reason: "Refusal",
  cache: "Cache",
  method: "Method",
  route: "Route",
};

export function dimensionWords(dimension: string): string {
  return DIMENSION[dimension] ?? (dimension.startsWith("tag.") ? dimension.slice(4) : dimension);
}

export function valueWords(dimension: string, value: string): string {
  if (value === "" || (dimension === "status" && value === "0")) return "(none)";
  return dimension === "denied_reason" ? (REASONS[value]?.[0] ?? value) : value;
}

/** Reason → in words, and what the caller can do. */
export const REASONS: Record<string, readonly [words: string, advice: string]> = {
  key_missing: ["No key", "Send the key in the Authorization header."],
  key_unknown: ["Unknown key", "Check the secret: it may have been mistyped or replaced."],
  key_inactive: ["Inactive key", "Activate the key, or use another."],
  key_revoked: ["Revoked key", "A revoked key never works again: use another."],
  key_expired: ["Expired key", "Use a key that has not expired."],
  key_deleted: ["Deleted key", "Use another key."],
  session_invalid: ["Invalid session", "Sign in again."],
  session_expired: ["Expired session", "Sign in again."],
  account_inactive: ["Inactive account", "The operator has deactivated the account."],
  route_unknown: ["Unknown path", "Check the path of the request."],
  layer_not_allowed: ["Not in the plan", "The plan does not include this path."],
  model_not_allowed: ["Model not permitted", "Use a model that the key or plan permits."],
  model_required: ["No model named", "Name the model in the request."],
  price_unknown: ["Model without a price", "The operator must set a price before it can be used."],
  rate_limited: ["Too fast", "Send fewer requests per window, or wait as Retry-After says."],
  too_many_concurrent: ["Too many at once", "Wait for a request to end before the next."],
  budget_exhausted: ["Budget used up", "Wait for its reset, or have it raised."],
  credit_exhausted: ["Credit used up", "Add credit to the account."],
  unavailable: ["Ledger unavailable", "Repeat the request: the server could not book it."],
};
