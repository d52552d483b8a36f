package network

const helperEnv = "TARTARUS_NETWORK_TEST_HELPER"

func helper() int { return 0 }
