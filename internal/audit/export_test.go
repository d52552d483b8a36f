package audit

import "context"

// Retain does what Run does now and then.
func (s *Sealer) Retain(ctx context.Context) error { return s.retain(ctx) }
