import { runScenarios } from "./suite.ts";

runScenarios({ fastPath: true, bridgeNfCall: 1 });
