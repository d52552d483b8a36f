redis.call('TIME')
return {'ok'}
