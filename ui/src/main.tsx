import { signal } from "@preact/signals";
import { render } from "preact";
import "./page.css";

const said = signal("Tollkeeper");

render(<main><h1>{said}</h1></main>, document.getElementById("page")!);
