package olympus

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"github.com/tartarus-sandbox/tartarus"
)

// hand tells a client of the sandboxes that were made for it. A client that left first does not know of them and could not end them, so they
// are ended. One that leaves while the answer is under way may have it: its sandboxes stay, and their timeouts end them.
func (s *Server) hand(w http.ResponseWriter, r *http.Request, body any, made []tartarus.Sandbox) error {
	if r.Context().Err() != nil {
		s.takeBack(r.Context(), made)
		return errClientLeft
	}
	writeJSON(w, http.StatusCreated, body)
	if err := http.NewResponseController(w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		s.takeBack(r.Context(), made)
	}
	return nil
}

// errClientLeft is for the log: nobody reads the answer.
var errClientLeft = &tartarus.Error{Kind: tartarus.Unavailable, Message: "the client left before it was told of its sandbox"}

// takeBack ends sandboxes that nobody was told of.
func (s *Server) takeBack(ctx context.Context, made []tartarus.Sandbox) {
	ctx, cancel := after(ctx)
	defer cancel()
	var all sync.WaitGroup
	for _, sb := range made {
		all.Go(func() {
			defer s.survive()
			s.stopUnwanted(ctx, sb)
		})
	}
	all.Wait()
}
