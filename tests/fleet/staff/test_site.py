"""The site as a whole answers whatever is typed into its addresses."""

import pytest

from tests.staff import log_in

ADDRESSES = [
    "r/1/xyz/", "search/?s=x&page=x", "search/?s=x&page=99&extended=1", "search/?s=a%00b&extended=1",
    "auth/user/?p=x", "auth/user/?o=999", "auth/user/?q=%00", "auth/user/xyz/change/", "auth/user/xyz/password/",
    "auth/user/99999999999999999999/change/", "auth/user/99999999999999999999/second-factor/", "auth/user/?groups__id__exact=x",
    "auth/user/?is_staff__exact=7", "auth/user/?_to_field=password&_popup=1", "auth/user/?password__startswith=pbkdf2",
    "auth/group/?q=%00", "auth/group/xyz/delete/", "auth/user/add/?username=%00&is_superuser=1&groups=x",
    "autocomplete/?app_label=engines&model_name=operation&field_name=engine&term=%00",
    "autocomplete/?app_label=auth&model_name=user&field_name=groups&page=x", "login/?next=%00", "login/code/?next=%00",
    "password_change/?x=%00", "second-factor/?x=%00", "provider/?next=%00", "provider/callback/?state=%00&code=x",
]  # fmt: skip


@pytest.mark.parametrize("method", ["get", "post"])
def test_no_address_is_a_fault_of_ours(db, method):
    client = log_in("root", superuser=True, raise_request_exception=False)
    answers = {path: getattr(client, method)(f"/admin/{path}").status_code for path in ADDRESSES}
    assert {path: status for path, status in answers.items() if status >= 500} == {}
