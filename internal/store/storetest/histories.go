package storetest

import "testing"

func queueHistories(t *testing.T, s Subject[QueueStore]) { _ = s }
