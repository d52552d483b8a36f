package olympus

import (
	"context"
	"net/http"
	"regexp"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// Joins lets nodes into the fleet, and shuts out those that were removed.
type Joins interface {
	// Token makes a token with which one node may join, once, within life; with a name only the node of that name.
	Token(node string, life time.Duration) (token string, ends time.Time, err error)
	// Ban ends a node's membership. It may join again with a new token.
	Ban(ctx context.Context, node string) error
}

// tokenLife is how long a join token is good when nothing else is asked: enough to log in to the machine it is for.
const tokenLife = 10 * time.Minute

// maxTokenSeconds is a day.
const maxTokenSeconds = 24 * 60 * 60

// nodeForm is what names of nodes look like.
var nodeForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// errWhole is the answer where the only node is in this process.
var errWhole = &tartarus.Error{Kind: tartarus.Unsupported, Message: "this server is a whole stack in one process, which no other node joins: run `tartarus olympus` and `tartarus hecatoncheir`"}

// makeToken makes a join token.
func (s *Server) makeToken(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.TokenRequest
	if err := decodeOptional(raw, &in, true); err != nil {
		return err
	}
	if in.Node != "" && !nodeForm.MatchString(in.Node) {
		return tartarus.Errorf(tartarus.Invalid, "node %.70q must be lower-case letters, digits, dots and dashes, at most 63", in.Node)
	}
	if in.Seconds < 0 || in.Seconds > maxTokenSeconds {
		return tartarus.Errorf(tartarus.Invalid, "seconds %d must be between 1 and %d", in.Seconds, maxTokenSeconds)
	}
	life := time.Duration(in.Seconds) * time.Second
	if life == 0 {
		life = tokenLife
	}
	if s.cfg.Joins == nil {
		return errWhole
	}
	token, ends, err := s.cfg.Joins.Token(in.Node, life)
	if err != nil {
		return err
	}
	s.log.Info("join token made", "key", who.key.ID, "node", in.Node, "ends", ends)
	writeJSON(w, http.StatusCreated, api.Token{Token: token, Node: in.Node, ExpiresAt: ends.UTC()})
	return nil
}
