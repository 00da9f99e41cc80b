import { runScenarios } from "./suite.ts";

runScenarios({ fastPath: "none", bridgeNfCall: 1 });
