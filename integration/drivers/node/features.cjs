// How a script reports: one line per feature, `ok`, `FAIL reason` or `-` where the driver has no such thing.

async function feature(name, body) {
  try {
    await body();
    console.log(`${name} ok`);
  } catch (error) {
    console.log(`${name} FAIL ${String(error.message || error).replace(/\s+/g, ' ').slice(0, 300)}`);
    console.error(name, error);
  }
}

const absent = (name) => console.log(`${name} -`);

async function expectError(sqlstate, promise) {
  const error = await promise.then(() => ({ code: 'no error' }), (error) => error);
  if (error.code !== sqlstate) throw new Error(`${error.code} ${error.message} instead of ${sqlstate}`);
  return error;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

module.exports = { feature, absent, expectError, pause };
