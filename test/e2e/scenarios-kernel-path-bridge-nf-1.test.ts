import { runScenarios } from "./suite.ts";

runScenarios({ fastPath: false, bridgeNfCall: 1 });
