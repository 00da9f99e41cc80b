import { runScenarios } from "./suite.ts";

runScenarios({ fastPath: "off", bridgeNfCall: 0 });
