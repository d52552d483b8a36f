package storetest

import (
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// TestQueueModel checks the judge: histories that broke a promise are found, the ones beside them pass.
func TestQueueModel(t *testing.T) {
	const ms, ttl = int64(1e6), int64(60e6)
	enq := porcupine.Operation{Input: call{verb: didEnqueue}, Output: answer{outcome: ok}, Call: 0, Return: ms}
	op := func(v verb, begin, end int64, token int64, a answer) porcupine.Operation {
		return porcupine.Operation{ClientId: int(begin/ms) % 7, Call: begin, Return: end, Output: a,
			Input: call{verb: v, token: token, ttl: ttl, begin: begin, end: end, retry: true, value: "v"}}
	}
	leased := func(at, token int64, attempt int) porcupine.Operation {
		return op(didLease, at, at+ms, 0, answer{outcome: ok, token: token, attempt: attempt})
	}
	done := answer{outcome: ok, state: acheron.Done, token: 1, attempt: 1, result: "v"}
	tests := []struct {
		name   string
		ops    []porcupine.Operation
		ghosts bool
		fits   bool
	}{
		{"a plain life", []porcupine.Operation{enq, leased(2*ms, 1, 1), op(didComplete, 9*ms, 10*ms, 1, answer{outcome: ok}), op(didRead, 11*ms, 12*ms, 0, done)}, false, true},
		{"two holders at once", []porcupine.Operation{enq, leased(2*ms, 1, 1), leased(4*ms, 2, 2)}, false, false},
		{"redelivered in time", []porcupine.Operation{enq, leased(2*ms, 1, 1), leased(62*ms, 2, 2)}, false, true},
		{"redelivered too early", []porcupine.Operation{enq, leased(2*ms, 1, 1), leased(50*ms, 2, 2)}, false, false},
		{"a token that does not grow", []porcupine.Operation{enq, leased(2*ms, 5, 1), leased(70*ms, 5, 2)}, false, false},
		{"an attempt not counted", []porcupine.Operation{enq, leased(2*ms, 1, 1), leased(70*ms, 2, 1)}, false, false},
		{"an attempt too many", []porcupine.Operation{enq, leased(2*ms, 1, 1), leased(70*ms, 2, 2), leased(140*ms, 3, 3)}, false, false},
		{"a stale holder heard", []porcupine.Operation{enq, leased(2*ms, 1, 1), leased(70*ms, 2, 2), op(didComplete, 80*ms, 81*ms, 1, answer{outcome: ok})}, false, false},
		{"a late holder heard", []porcupine.Operation{enq, leased(2*ms, 1, 1), op(didComplete, 80*ms, 81*ms, 1, answer{outcome: ok})}, false, false},
		{"a good holder refused", []porcupine.Operation{enq, leased(2*ms, 1, 1), op(didComplete, 20*ms, 21*ms, 1, answer{outcome: conflict})}, false, false},
		{"completed twice", []porcupine.Operation{enq, leased(2*ms, 1, 1), op(didComplete, 9*ms, 10*ms, 1, answer{outcome: ok}), op(didComplete, 11*ms, 12*ms, 1, answer{outcome: ok})}, false, false},
		{"a renewal that did not hold", []porcupine.Operation{enq, leased(2*ms, 1, 1), op(didRenew, 40*ms, 41*ms, 1, answer{outcome: ok}), leased(70*ms, 2, 2)}, false, false},
		{"no backoff", []porcupine.Operation{enq, leased(2*ms, 1, 1), op(didFail, 9*ms, 10*ms, 1, answer{outcome: ok}), leased(50*ms, 2, 2)}, false, false},
		{"a backoff", []porcupine.Operation{enq, leased(2*ms, 1, 1), op(didFail, 9*ms, 10*ms, 1, answer{outcome: ok}), leased(109*ms, 2, 2)}, false, true},
		{"handed out after its end", []porcupine.Operation{enq, op(didCancel, 2*ms, 3*ms, 0, answer{outcome: ok}), leased(4*ms, 1, 1)}, false, false},
		{"a lost report that counted", []porcupine.Operation{enq, leased(2*ms, 1, 1), op(didComplete, 9*ms, 1<<61, 1, answer{outcome: unknown}), op(didRead, 11*ms, 12*ms, 0, done)}, false, true},
		{"a lost lease", []porcupine.Operation{enq, leased(70*ms, 2, 2)}, true, true},
		{"an attempt from nowhere", []porcupine.Operation{enq, leased(70*ms, 2, 2)}, false, false},
		{"a lost job", []porcupine.Operation{enq, op(didRead, 3*ms, 4*ms, 0, answer{outcome: absent})}, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := porcupine.CheckOperations(queueModel(2, tt.ghosts), tt.ops); got != tt.fits {
				t.Errorf("the model says %t", got)
			}
		})
	}
}

func TestRegistryModel(t *testing.T) {
	put := func(begin, end, revision int64, a answer) porcupine.Operation {
		return porcupine.Operation{ClientId: int(begin), Call: begin, Return: end, Input: call{verb: didPut, revision: revision, value: "v"}, Output: a}
	}
	read := func(begin int64, a answer) porcupine.Operation {
		return porcupine.Operation{ClientId: int(begin), Call: begin, Return: begin + 1, Input: call{verb: didRead}, Output: a}
	}
	first := put(1, 2, 0, answer{outcome: ok, revision: 1})
	tests := []struct {
		name string
		ops  []porcupine.Operation
		fits bool
	}{
		{"compare and set", []porcupine.Operation{first, put(3, 4, 1, answer{outcome: ok, revision: 2}), put(5, 6, 1, answer{outcome: conflict})}, true},
		{"a lost update", []porcupine.Operation{first, put(3, 4, 1, answer{outcome: ok, revision: 2}), put(5, 6, 1, answer{outcome: ok, revision: 2})}, false},
		{"a stale read", []porcupine.Operation{first, read(5, answer{outcome: absent})}, false},
		{"a conflict without cause", []porcupine.Operation{first, put(3, 4, 1, answer{outcome: conflict})}, false},
		{"no answer, it happened", []porcupine.Operation{put(1, 1<<61, 0, answer{outcome: unknown}), read(5, answer{outcome: ok, revision: 1, result: "v"})}, true},
		{"no answer, it did not", []porcupine.Operation{put(1, 1<<61, 0, answer{outcome: unknown}), read(5, answer{outcome: absent})}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := porcupine.CheckOperations(registryModel(), tt.ops); got != tt.fits {
				t.Errorf("the model says %t", got)
			}
		})
	}
}
