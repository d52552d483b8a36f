package olympus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
)

// madeBefore finds the job of an earlier create with an idempotency key, if that did not come to nothing for a passing cause. It is looked for only when
// a request with a key would be refused: one that is let in finds it when it is enqueued.
func (s *Server) madeBefore(ctx context.Context, tenant, key string, now time.Time) (acheron.Job, bool) {
	queue, ok := s.cfg.Queue.(acheron.Keyed)
	if !ok || key == "" {
		return acheron.Job{}, false
	}
	for round, name := 2, key; round <= keyRounds+1; round++ {
		j, err := queue.ByKey(ctx, tenant, name)
		if err != nil { // nothing is known, and the refusal stands
			return acheron.Job{}, false
		}
		if !mayTryAgain(j, now) {
			return j, true
		}
		name = keyOfRound(key, round)
	}
	return acheron.Job{}, false
}

// answerAgain gives a request what an earlier one with its key was given, or will be, and reports whether there was one. Nothing is judged, because
// nothing is made.
func (s *Server) answerAgain(ctx context.Context, w http.ResponseWriter, who caller, key, digest string) (answered bool, err error) {
	first, made := s.madeBefore(ctx, who.key.Tenant, key, who.now)
	if !made {
		return false, nil
	}
	who.act.about(first.ID, first.Tenant)
	if first.Digest != digest {
		return true, errOtherBody
	}
	if err := who.act.begin(ctx); err != nil {
		return true, err
	}
	sb, err := s.arrive(ctx, first, nil, nil)
	if err != nil {
		return true, err
	}
	writeJSON(w, http.StatusCreated, s.answerSandbox(sb, who))
	return true, nil
}

var errOtherBody = &tartarus.Error{Kind: tartarus.Mismatch, Message: "the Idempotency-Key was used with another body"}

// digestOf is what tells the bodies under an idempotency key apart.
func digestOf(key string, v wireVersion, body []byte) string {
	if key == "" {
		return ""
	}
	sum := sha256.Sum256(append([]byte(v.name+" "), body...))
	return hex.EncodeToString(sum[:])
}

// keyOfRound is the key under which a create is tried again: one that no client can send.
func keyOfRound(key string, round int) string { return key + "#" + strconv.Itoa(round) }
