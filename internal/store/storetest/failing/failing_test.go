package failing

import (
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

var (
	_ hades.Registry       = Registry{}
	_ storetest.QueueStore = Queue{}
	_ themis.Store         = Policies{}
	_ tenant.Store         = Keys{}
	_ storetest.Journaler  = Journal{}
)

func TestErrors(t *testing.T) {
	if _, err := (Queue{}).Lease(t.Context(), "n", 1, 1); !tartarus.Is(err, tartarus.Unavailable) {
		t.Errorf("by default: %v", err)
	}
	corrupt := tartarus.Errorf(tartarus.Corrupt, "bits rot")
	if _, err := (Queue{Err: corrupt}).Await(t.Context(), "j"); err != error(corrupt) {
		t.Errorf("with an error of its own: %v", err)
	}
}
