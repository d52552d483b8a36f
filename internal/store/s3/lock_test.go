package s3_test

import (
	"io"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/store/s3"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3/s3test"
)

// What is locked cannot be removed before its time; where a bucket has no lock, it is stored all the same, and that is told.
func TestPutLocked(t *testing.T) {
	server := s3test.Start(t)
	for bucket, want := range map[string]bool{"bucket": false, "locked": true} {
		t.Run(bucket, func(t *testing.T) {
			cfg := server.Config()
			cfg.Bucket = bucket
			store, err := s3.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = store.Close() }()
			if want {
				if err := s3.MakeLocked(t.Context(), store); err != nil {
					t.Skip("this S3 server makes no buckets with object lock: ", err)
				}
			}
			locked, err := store.PutLocked(t.Context(), "audit/one/000001.jsonl", []byte("a record\n"), time.Now().Add(time.Hour))
			if err != nil || locked != want {
				t.Fatalf("locked %t, %v", locked, err)
			}
			err = store.Delete(t.Context(), "audit/one/000001.jsonl")
			if (err != nil) != want {
				t.Fatalf("removed: %v", err)
			}
			if !want {
				return
			}
			r, err := store.Get(t.Context(), "audit/one/000001.jsonl")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = r.Close() }()
			if body, err := io.ReadAll(r); err != nil || string(body) != "a record\n" {
				t.Fatalf("got %q, %v", body, err)
			}
		})
	}
}
