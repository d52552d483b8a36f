package s3

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// noLock are the codes by which servers say that a bucket has no object lock, or that they know none.
var noLock = []string{"ObjectLockConfigurationNotFoundError", "ObjectLockConfigurationNotFound", "NotImplemented", "MethodNotAllowed"}

// PutLocked stores an object that nobody can remove or replace until a time, where the bucket has object lock, and reports whether it has. Where
// it has none, the object is stored as any other.
func (s *Store) PutLocked(ctx context.Context, name string, body []byte, until time.Time) (locked bool, err error) {
	if locked, err = s.locks(ctx); err != nil {
		return false, err
	}
	in := &awss3.PutObjectInput{
		Bucket: aws.String(s.cfg.Bucket), Key: s.key(name), Body: bytes.NewReader(body), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
	}
	if locked {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = types.ObjectLockModeCompliance, aws.Time(until.UTC())
	}
	_, err = s.client.PutObject(ctx, in)
	return locked && err == nil, explain("store", name, err)
}

// locks reports whether the bucket has object lock.
func (s *Store) locks(ctx context.Context) (bool, error) {
	out, err := s.client.GetObjectLockConfiguration(ctx, &awss3.GetObjectLockConfigurationInput{Bucket: aws.String(s.cfg.Bucket)})
	if e, ok := errors.AsType[smithy.APIError](err); ok && slices.Contains(noLock, e.ErrorCode()) {
		return false, nil
	}
	if err != nil {
		return false, explain("look at", "the bucket's object lock", err)
	}
	return out.ObjectLockConfiguration != nil && out.ObjectLockConfiguration.ObjectLockEnabled == types.ObjectLockEnabledEnabled, nil
}
