import { runScenarios } from "./suite.ts";

runScenarios({ fastPath: "on", bridgeNfCall: 0 });
