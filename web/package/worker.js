// The engine in a worker, so that the page never waits for it.
import { serve } from "./engine.js";

serve(self);
