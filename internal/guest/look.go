package guest

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/inspect"
)

// maxLook bounds how long the agent looks around, whatever it is asked for.
const maxLook = 30 * time.Second

// inspect answers GET /inspect?since=SECONDS&within=MILLISECONDS: processes, sockets, and files that changed since then.
func (a *Agent) inspect(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	since, err1 := strconv.ParseInt(q.Get("since"), 10, 64)
	within, err2 := strconv.ParseInt(q.Get("within"), 10, 32)
	if err1 != nil || err2 != nil || within < 1 {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "since is seconds since 1970, within is milliseconds"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), min(maxLook, time.Duration(within)*time.Millisecond))
	defer cancel()
	answer(w, inspect.Guest(ctx, a.guest.Root, time.Unix(since, 0)))
}
