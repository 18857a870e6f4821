/** The mark: a gate whose bar is up. */
export function Logo() {
  return (
    <svg class="logo" width="22" height="22" viewBox="0 0 24 24" aria-hidden="true">
      <path
        d="M4 21V9h4v12M8 11 21 4"
        fill="none"
        stroke="currentColor"
        stroke-width="2.4"
        stroke-linecap="round"
        stroke-linejoin="round"
      />
      <circle cx="6" cy="6" r="1.8" fill="currentColor" />
    </svg>
  );
}
