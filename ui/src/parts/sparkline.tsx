/** A small line without axes; the numbers are in the chart that it opens. */
export function Sparkline({
  values,
  width = 120,
  height = 28,
}: {
  values: readonly (number | null)[];
  width?: number;
  height?: number;
}) {
  const known = values.map((value) => value ?? 0);
  const most = Math.max(...known, 0);
  if (known.length < 2 || most === 0)
    return <svg class="spark" viewBox={`0 0 ${width} ${height}`} aria-hidden="true" />;
  const x = (i: number): string => ((i / (known.length - 1)) * width).toFixed(1);
  const y = (value: number): string => (height - 2 - (value / most) * (height - 4)).toFixed(1);
  const line = known.map((value, i) => `${x(i)},${y(value)}`).join(" ");
  return (
    <svg class="spark" viewBox={`0 0 ${width} ${height}`} preserveAspectRatio="none" aria-hidden="true">
      <polygon points={`0,${height} ${line} ${width},${height}`} />
      <polyline points={line} vector-effect="non-scaling-stroke" />
    </svg>
  );
}
